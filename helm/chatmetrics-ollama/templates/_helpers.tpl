{{/* All resources are named after the release, which makes the endpoint easy to guess: http://RELEASE.NAMESPACE */}}
{{- define "chatmetrics.name" -}}
{{- .Release.Name -}}
{{- end -}}

{{/* What never changes between versions of the chart: a Deployment's selector is immutable. */}}
{{- define "chatmetrics.selectorLabels" -}}
app.kubernetes.io/name: chatmetrics-ollama
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .track }}
track: {{ . }}
{{- end }}
{{- end -}}

{{- define "chatmetrics.labels" -}}
{{ include "chatmetrics.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* repository@digest, or repository:tag. */}}
{{- define "chatmetrics.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "chatmetrics.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "chatmetrics.name" .) -}}
{{- end -}}

{{/* The Secret with one key a client. */}}
{{- define "chatmetrics.tokensSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-tokens" (include "chatmetrics.name" .)) -}}
{{- end -}}

{{/* Clients that need a token: those of the values and the chart's own. */}}
{{- define "chatmetrics.clients" -}}
{{- $clients := .Values.auth.clients -}}
{{- if .Values.smokeTest.enabled -}}
{{- $clients = append $clients .Values.smokeTest.tokenKey -}}
{{- end -}}
{{- if .Values.anythingllm.enabled -}}
{{- $clients = append $clients .Values.anythingllm.tokenKey -}}
{{- end -}}
{{- $clients | uniq | toJson -}}
{{- end -}}

{{- define "chatmetrics.modelsClaim" -}}
{{- .Values.storage.existingClaim | default (printf "%s-models" (include "chatmetrics.name" .)) -}}
{{- end -}}

{{/* The volume of a database; a volume's name has no '_'. */}}
{{- define "chatmetrics.databaseVolume" -}}
database-{{ .name | replace "_" "-" }}
{{- end -}}

{{/* Pod security "restricted", for containers of our image and Ollama's. */}}
{{- define "chatmetrics.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch # else every start would go through all files of the models
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "chatmetrics.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The port that S3 is reached at. */}}
{{- define "chatmetrics.s3Port" -}}
{{- $url := urlParse .Values.s3.endpoint -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $port | default (eq $url.scheme "http" | ternary "80" "443") -}}
{{- end -}}
