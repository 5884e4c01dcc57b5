{{/* The pod of the hook and of `helm test`: queries each track's models through the Service with the first question of their acceptance test. */}}
{{- define "chatmetrics.smokePod" -}}
{{- $values := .Values -}}
{{- $name := include "chatmetrics.name" . -}}
restartPolicy: Never
serviceAccountName: {{ include "chatmetrics.clientAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "chatmetrics.podSecurityContext" . | nindent 2 }}
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  {{- range $track := $values.canary.enabled | ternary (list "stable" "canary") (list "stable") }}
  - name: {{ $track }}
    image: {{ include "chatmetrics.image" (dict "root" $ "image" $values.image) }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    command: [python3, -m, chatmetrics.components.serve, smoke, "http://{{ eq $track "stable" | ternary $name (printf "%s-%s" $name $track) }}:{{ int $values.service.port }}"]
    {{- if $values.auth.enabled }}
    env:
      - name: CHATMETRICS_TOKEN
        valueFrom:
          secretKeyRef: {name: {{ include "chatmetrics.tokensSecret" $ }}, key: {{ $values.smokeTest.tokenKey }}}
    {{- end }}
    resources:
      {{- toYaml $values.smokeTest.resources | nindent 6 }}
    securityContext:
      {{- include "chatmetrics.securityContext" $ | nindent 6 }}
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
  {{- end }}
volumes:
  - name: tmp
    emptyDir: {}
{{- end -}}
