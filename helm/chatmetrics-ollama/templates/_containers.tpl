{{/* Fetches the models, checks them and their memory, and stores them where Ollama finds them. The only container with access to S3. */}}
{{- define "chatmetrics.fetchContainer" -}}
{{- $values := .root.Values -}}
- name: fetch
  image: {{ include "chatmetrics.image" (dict "root" .root "image" $values.image) }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [python3, -m, chatmetrics.components.serve, fetch, /etc/chatmetrics/release.json]
  env:
    - name: CHATMETRICS_MEMORY_LIMIT # without a limit, the node's allocatable memory
      valueFrom:
        resourceFieldRef: {containerName: ollama, resource: limits.memory}
    {{- with $values.s3.endpoint }}
    - name: AWS_ENDPOINT_URL_S3
      value: {{ . | quote }}
    {{- end }}
    - name: AWS_REGION
      value: {{ $values.s3.region | quote }}
    - name: AWS_MAX_ATTEMPTS # as in the pipeline's steps: a start survives minutes without S3
      value: "30"
    - name: CHATMETRICS_S3_MIN_KIB_PER_SECOND
      value: {{ $values.s3.minKibPerSecond | quote }}
    {{- if ne $values.s3.addressing "auto" }}
    - name: CHATMETRICS_S3_ADDRESSING
      value: {{ $values.s3.addressing }}
    {{- end }}
    {{- if $values.s3.caConfigMap }}
    - name: AWS_CA_BUNDLE
      value: /etc/chatmetrics-s3-ca/ca.crt
    {{- end }}
    {{- with $values.s3.existingSecret }}
    - name: AWS_ACCESS_KEY_ID
      valueFrom:
        secretKeyRef: {name: {{ . }}, key: {{ $values.s3.accessKeyKey }}}
    - name: AWS_SECRET_ACCESS_KEY
      valueFrom:
        secretKeyRef: {name: {{ . }}, key: {{ $values.s3.secretKeyKey }}}
    {{- end }}
  resources:
    {{- toYaml $values.fetch.resources | nindent 4 }}
  securityContext:
    {{- include "chatmetrics.securityContext" . | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - {name: release, mountPath: /etc/chatmetrics, readOnly: true}
    - {name: models, mountPath: /models}
    - {name: ollama, mountPath: /ollama}
    - {name: tmp, mountPath: /tmp}
    {{- if $values.s3.caConfigMap }}
    - {name: s3-ca, mountPath: /etc/chatmetrics-s3-ca, readOnly: true}
    {{- end }}
    {{- with include "chatmetrics.extraVolumeMounts" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Answers clients; the only container with a port outside the pod. First it creates, loads and tests the models. */}}
{{- define "chatmetrics.proxyContainer" -}}
{{- $values := .root.Values -}}
- name: proxy
  image: {{ include "chatmetrics.image" (dict "root" .root "image" $values.image) }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [python3, -m, chatmetrics.components.serve, proxy, /etc/chatmetrics/release.json]
  env:
    - name: CHATMETRICS_OLLAMA
      value: http://127.0.0.1:11434
    - name: CHATMETRICS_THREADS # Ollama's default would be the number of the node's cores
      valueFrom:
        resourceFieldRef: {containerName: ollama, resource: limits.cpu, divisor: "1"}
    {{- if $values.ask.passwordSecret }}
    {{- range list "PGPASSWORD" "MYSQL_PWD" }}
    - name: {{ . }}
      valueFrom:
        secretKeyRef: {name: {{ $values.ask.passwordSecret }}, key: {{ $values.ask.passwordKey }}}
    {{- end }}
    {{- end }}
  ports:
    - {name: http, containerPort: 8080}
    - {name: management, containerPort: 8081}
  startupProbe: # loading and the acceptance test
    httpGet: {path: /health/started, port: management}
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: {{ div (add $values.rollout.startupSeconds 1) 2 }}
  readinessProbe:
    httpGet: {path: /health/ready, port: management}
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 2
  livenessProbe:
    httpGet: {path: /health/live, port: management}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
    terminationGracePeriodSeconds: 10 # it hangs, so there is nothing to wait for
  resources:
    {{- toYaml $values.proxy.resources | nindent 4 }}
  securityContext:
    {{- include "chatmetrics.securityContext" . | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - {name: release, mountPath: /etc/chatmetrics, readOnly: true}
    {{- if $values.auth.enabled }}
    - {name: tokens, mountPath: /etc/chatmetrics-tokens, readOnly: true}
    {{- end }}
    - {name: models, mountPath: /models, readOnly: true}
    - {name: models, mountPath: /served, subPath: served} # records the models in use, which are not deleted
    - {name: state, mountPath: /state}
    - {name: tmp, mountPath: /tmp}
    {{- range $values.ask.databases }}
    {{- if .existingClaim }}
    - {name: {{ include "chatmetrics.databaseVolume" . }}, mountPath: /databases/{{ .name }}, readOnly: true}
    {{- end }}
    {{- end }}
    {{- with include "chatmetrics.extraVolumeMounts" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Ollama, reachable only inside the pod. */}}
{{- define "chatmetrics.ollamaContainer" -}}
{{- $values := .root.Values -}}
- name: ollama
  image: {{ include "chatmetrics.image" (dict "root" .root "image" $values.ollama.image) }}
  imagePullPolicy: {{ $values.ollama.image.pullPolicy }}
  env:
    {{- include "chatmetrics.ollamaEnvironment" . | nindent 4 }}
    {{- with $values.ollama.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  startupProbe:
    exec: {command: [ollama, ls]}
    periodSeconds: 2
    timeoutSeconds: 10
    failureThreshold: 60
  livenessProbe: # the proxy creates this file when Ollama hangs; a busy CPU is no reason to drop requests in progress
    exec: {command: [/bin/sh, -c, "[ ! -e /state/stuck ]"]}
    periodSeconds: 2
    timeoutSeconds: 20
    failureThreshold: 1
    terminationGracePeriodSeconds: 2 # it hangs, so do not wait for the proxy
  lifecycle:
    preStop: # SIGTERM makes Ollama drop requests in progress, so the proxy finishes them first
      exec: {command: [/bin/sh, -c, "while [ -e /state/answering ]; do sleep 0.2; done"]}
  resources:
    {{- include "chatmetrics.ollamaResources" . | nindent 4 }}
  securityContext:
    {{- include "chatmetrics.securityContext" . | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - {name: models, mountPath: /models} # not read-only: Ollama updates the time of the blobs that it uses
    - {name: ollama, mountPath: /ollama}
    - {name: state, mountPath: /state, readOnly: true}
{{- end -}}

{{- define "chatmetrics.ollamaEnvironment" -}}
- name: OLLAMA_HOST # model management is not reachable from outside the pod
  value: 127.0.0.1:11434
- name: HOME
  value: /ollama
- name: OLLAMA_MODELS
  value: /ollama/models
- name: OLLAMA_GO_TEMPLATE # the manifest's template, not the GGUF's
  value: "1"
- name: OLLAMA_NO_CLOUD
  value: "1"
- name: OLLAMA_KEEP_ALIVE
  value: "-1"
- name: OLLAMA_NOPRUNE
  value: "1"
- name: OLLAMA_NUM_PARALLEL
  value: {{ int .root.Values.ollama.concurrency | quote }}
- name: OLLAMA_MAX_LOADED_MODELS
  value: {{ len .models | quote }}
- name: GIN_MODE
  value: release
{{- end -}}

{{- define "chatmetrics.ollamaResources" -}}
{{- $resources := deepCopy .root.Values.ollama.resources -}}
{{- if .root.Values.gpu.enabled -}}
{{- $gpu := dict .root.Values.gpu.resource (toString (int .root.Values.gpu.count)) -}}
{{- $_ := set $resources "limits" (merge $gpu (dig "limits" dict $resources)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "chatmetrics.extraVolumeMounts" -}}
{{- range .root.Values.extraVolumeMounts }}
- {{ toJson (merge (dict "readOnly" true) .) }}
{{- end }}
{{- end -}}
