{{- define "chatmetrics.volumes" -}}
{{- $values := .root.Values -}}
- name: release
  downwardAPI:
    items:
      - path: release.json
        fieldRef: {fieldPath: "metadata.annotations['chatmetrics/release.json']"}
- name: models
  {{- if eq $values.storage.kind "persistentVolumeClaim" }}
  persistentVolumeClaim: {claimName: {{ include "chatmetrics.modelsClaim" .root }}}
  {{- else if eq $values.storage.kind "hostPath" }}
  hostPath: {path: {{ $values.storage.path }}, type: DirectoryOrCreate}
  {{- else }}
  emptyDir: {sizeLimit: {{ $values.storage.size }}}
  {{- end }}
- name: ollama
  emptyDir: {}
- name: state
  emptyDir: {sizeLimit: 1Mi}
- name: tmp
  emptyDir: {}
{{- if $values.auth.enabled }}
- name: tokens
  secret: {secretName: {{ include "chatmetrics.tokensSecret" .root }}, defaultMode: 0440}
{{- end }}
{{- with $values.s3.caConfigMap }}
- name: s3-ca
  configMap: {name: {{ . }}}
{{- end }}
{{- range $values.ask.databases }}
{{- if .existingClaim }}
- name: {{ include "chatmetrics.databaseVolume" . }}
  persistentVolumeClaim: {claimName: {{ .existingClaim }}, readOnly: true}
{{- end }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The nodes on which the pods of a track may run. */}}
{{- define "chatmetrics.placement" -}}
{{- $values := .root.Values -}}
{{- $nodeSelector := deepCopy $values.nodeSelector -}}
{{- $tolerations := $values.tolerations -}}
{{- if $values.gpu.enabled -}}
  {{- $tolerations = concat $values.gpu.tolerations $tolerations -}}
  {{- with $values.gpu.pool -}}
    {{- $_ := set $nodeSelector $values.gpu.nodeLabel (get $values.gpu.pools .) -}}
  {{- end -}}
{{- end -}}
{{- $release := dict "matchLabels" (include "chatmetrics.selectorLabels" (dict "root" .root "component" "server") | fromYaml) -}}
{{- with $nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and $values.gpu.enabled $values.gpu.runtimeClassName }}
runtimeClassName: {{ $values.gpu.runtimeClassName }}
{{- end }}
{{- if $values.affinity }}
affinity:
  {{- toYaml $values.affinity | nindent 2 }}
{{- else if and (eq $values.storage.kind "persistentVolumeClaim") (eq (join "," $values.storage.accessModes) "ReadWriteOnce") }}
affinity: # the claim can be mounted on one node at a time; only preferred, so that a lost node blocks nothing
  podAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector: {{ toJson $release }}
{{- else }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {{ toJson $release }}
{{- end }}
{{- end -}}
